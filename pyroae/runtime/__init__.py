"""Files, memory, signals, threads, processes and progress bars."""
