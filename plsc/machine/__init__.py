"""What plsc needs of the machine it runs on: files, locks, memory, threads, signals, random numbers, processes."""
