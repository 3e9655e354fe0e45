"""What the scheduler stands on: records, the wire, the clock, ids. Knows no other part of it."""
