# SPDX-License-Identifier: Apache-2.0
"""Lying kernels: for every clause at least one change of one answer that the clause has to notice.

A mutation is a factory that returns an interposer (see vmm.kvm.ioctl.interpose). It runs inside the clause's own
child process, before the clause, so it may keep state. Most are one expression, a line of ``lies``; one that needs
statements is a function under ``@mutation`` (both are in tests.mutations.registry). Run them all with
``python3 -m tests.mutations``.
"""
