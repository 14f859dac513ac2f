"""Jobs: a pure state machine (state.py), an engine that queues and tells the story (engine.py), and drivers that
run one call on one worker (inline.py in this process, dask_driver.py on Dask workers).

Importing this room loads neither Dask nor torch.
"""
