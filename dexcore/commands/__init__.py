"""The commands of ``dexcore``, a file each: arguments, what is printed, the exit code. What they do lies below."""
