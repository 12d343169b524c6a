"""Files, memory, signals, threads and progress bars."""
