"""What the compiler makes of every way to compile a loop."""
