"""Is a data set complete and the official one? `python -m cirlab.data_check cirr --root DATA`.

Nothing is downloaded. What is known of a data set is data (`descriptions`). Its annotations are
read by the classes that evaluations use, and by `readers` where there is no benchmark.
"""
