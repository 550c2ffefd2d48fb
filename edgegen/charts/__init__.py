"""The report's charts: each function gives back a `look.Figure`, drawn with Altair (Vega-Lite).

    latency.py    every sample, cumulative shares, tokens by position, ratios with their intervals
    pareto.py     latency against size, memory, energy, quality
    operators.py  which operators the time goes to
    roofline.py   how near each run came to what its device can do
    heat.py       which layers a change hurts
    trend.py      a metric over the days it was measured on
    look.py       colours, scales and fonts that they share

Needs the extra `report`; importing one of these without it is a ModuleNotFoundError.
"""
