"""What is remembered of rows that are not kept: counts over frozen bins that add up, and a bounded sample beside them.

Gateways make sketches of what they serve, bulk runs of what they score, the training of what it held out; the monitor
judges their sums. So this stage lies below all of them and knows numpy only.
"""
