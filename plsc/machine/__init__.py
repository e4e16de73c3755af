"""What plsc asks of the machine it runs on: files, memory, threads, signals, random numbers, processes."""
