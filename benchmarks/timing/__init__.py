"""work, another way to do it -> a ratio: how fast the program is, always against something measured beside it.

speed   what is done in a fast way, against the plain one, on the CPU
gpu     a training step, inference and matching on an accelerator, in parts ordered by value
"""
