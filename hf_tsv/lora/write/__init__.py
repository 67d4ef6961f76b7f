"""Task matrices into PEFT folders."""
