"""Where the units of work run: processes of this machine, Ray, or a Slurm array. The bytes are the same anywhere.

On every engine a unit runs in a child process that we start and watch (pool.py), so that a page may kill it: the
engine's own worker, or the node's, never dies of one. Ray and Slurm need a folder that all nodes share.

    engine.py           the interface
    choose.py           the engines by name
    pool.py             a pool of processes on this machine, whose workers may be killed
    ray_engine.py       tasks of Ray
    slurm.py            the job array, as the submitting process sees it
    slurm_element.py    one element of the job array
    wire.py             tasks and results as JSON, for the engines of several machines
"""

DECIDES_NOTHING = "where the units run"
