import sys, time, tempfile
from pathlib import Path
from importlib import import_module
if __name__ == "__main__":
    name, seed, kw = sys.argv[1], int(sys.argv[2]), eval("dict(%s)" % (sys.argv[3] if len(sys.argv) > 3 else ""))
    f = getattr(import_module("tests.reliability." + name.split(".")[0]), name.split(".")[1])
    d = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="faults-"))/"case"; d.mkdir()
    t=time.time()
    try: print(f(seed, d, **kw))
    finally: print(time.time()-t, d)
