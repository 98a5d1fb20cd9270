"""Mutated files through every reader of ``mach_ext.data``, against naive readers written from the formats.

* ``corpus``: valid files, drawn at random.
* ``mutate`` and ``mutate_npz``: what damages them, ``tokens``: with what.
* ``naive``: the readers once more, in plain and slow Python.
* ``folders``: model folders and run folders, with a flipped bit, cut, or with a file of another folder.
* ``formats``: which files, which naive and which real readers make up a format.
* ``run``: the loop, in a process that may crash. ``make stress`` starts it.
* ``writers``: two processes that save into one folder, and a third that loads it.
* ``threads``: threads that predict beside one that trains, and processes that fork.
* ``deaths``: a training on two processes, one of which dies again and again.
* ``memory``: another loop, of operations that may have less and less memory.

Both readers must accept or both refuse. What they read must be the same to the bit. A refusal must be a
ValueError or TypeError that names the file and, in files of lines, the first bad line.
"""
