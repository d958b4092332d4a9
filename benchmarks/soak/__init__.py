"""A long run of masked steps, whose memory must stay flat."""
