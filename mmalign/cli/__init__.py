"""The command line: `mmalign.cli.main` parses, every other module is loaded by the command that needs it."""
