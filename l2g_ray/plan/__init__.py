"""What a run will take, and what one took: rows, operations, memory, disk; numbers only, without torch."""
