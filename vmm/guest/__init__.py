# SPDX-License-Identifier: Apache-2.0
"""Guests: payloads, their mailbox, and what both architectures' guests share."""
