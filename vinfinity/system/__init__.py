"""What the operating system provides: files, folders, memory, signals and the terminal."""
