# SPDX-License-Identifier: Apache-2.0
"""A plain program for KVM on x86 that knows no clause: it calls everything that it can and writes down what it saw.

Whatever it sees with a fault and never without has an effect which any program can see. It uses Python's library
alone, so that nothing it reports depends on what is judged with its help.
"""
