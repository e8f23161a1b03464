"""Runs that no worker of this lab carries out: training loops of one's own, and records of other tools."""
