"""Studies: several runs or measurements side by side, made with the parts of a suite."""
