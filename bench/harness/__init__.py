"""The harness behind every benchmark: cases, timing, ceilings, the CSV and its plots."""
