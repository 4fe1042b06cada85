"""`tidelog inspect`: shows what lies in a WAL, a bucket and the metadata log, for people and (`--json`) for programs.

Always true:
- Nothing is written and no lock is taken, so it may run beside a live broker, and on what a dead one left behind.
- No format is decoded here: the codecs are those that the broker itself uses.
- What is found is told row by row, as it is found, so that memory does not grow with what is looked at.
- Damage is shown where it is met and does not end the look; `tidelog verify` is what looks for it everywhere.
"""
