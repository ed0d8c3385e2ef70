"""The suite's own scheduling code in virtual time, with trials that only wait."""
