"""Trainers' own interfaces, answered by a scoring server: a file for each framework.

Each imports its framework, and nothing else imports it: install the frameworks yourself.
"""
