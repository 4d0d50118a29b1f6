"""What a run will take, before it starts: memory, tokens, time and money, from shapes alone.

`estimate` puts it together; `devices` is the table of machines, `tracing` finds the memory of a
step, `memory` its parts, `lengths` reads the data's tokens, `calibration` measures a machine,
`verdict` says what it comes to, `record` joins it to what a run has measured, and `paper` to
what the LaVIN paper has.
"""
