"""`tidelog verify`: checks everything that a cluster keeps in its bucket against everything else.

Always true:
- Nothing is written. It may run while brokers write, compact and collect: what seems wrong is looked at again with the
  metadata as it is by then, and is told only if it is still so.
- A finding says what, where, and what to do; a clean bucket has none, however its brokers ended.
- Memory is bounded by the metadata, as on any node, and by some megabytes for each object that is checked at a time.
"""
