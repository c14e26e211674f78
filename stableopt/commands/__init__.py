"""The command line, a folder for each command. It needs the extra ``cli``."""
