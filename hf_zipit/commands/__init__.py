"""One module per command of the command line. They import what they need when they run: `--help` stays fast."""
