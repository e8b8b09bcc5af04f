"""Kills, full disks, second starts and random input: small in the tests, long by ``make torture``.

- :mod:`torture.children` runs work in forked processes that are killed, or find the disk full, at a chosen moment.
- :mod:`torture.runs` has four kinds of run, and asks whether a run that was broken off and resumed equals a whole one.
- :mod:`torture.inputs` makes random and damaged rows, recipes, images, run directories and answers of servers.
"""
