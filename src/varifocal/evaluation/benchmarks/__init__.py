"""The benchmarks, one small file a family; `table` lists them all."""
