"""What the scripts' command lines have in common."""

import argparse


def count(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return number
