# SPDX-License-Identifier: Apache-2.0
"""What is arm64: register ids, vector lengths, VCPU_INIT and FINALIZE, a small guest at EL1."""
