"""Parameter-efficient methods as PEFT plugins; imports nothing else of Varifocal."""
