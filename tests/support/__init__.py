"""What tests of several parts of the package share: data, a server and an oracle. Tiny models are in :mod:`tiny`.

What only one folder of tests uses lies in that folder.
"""
