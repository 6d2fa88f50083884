"""Speed, measured side by side in one run on one machine: `make bench`. Nothing here is a test."""
