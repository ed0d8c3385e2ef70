"""The data check: leakage beyond equal sequences, contradictions, balance, shifts and shortcuts."""
