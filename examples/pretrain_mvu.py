"""Pre-train a Director-Experts vision transformer as a masked autoencoder on medical images.

    # On sample images, in minutes on two CPU cores:
    python examples/pretrain_mvu.py

    # The paper's recipe on a store of your own:
    python examples/pretrain_mvu.py --preset paper --data.store path/to/store

    # On two GPUs, or in two processes:
    torchrun --nproc-per-node 2 examples/pretrain_mvu.py

    # Go on after a kill:
    python examples/pretrain_mvu.py --resume

An installed dexcore has the same as a command, ``dexcore pretrain``. Returns 0 when done, 2 after an error, 75 when a
signal stopped it and ``--resume`` goes on.
"""

from dexcore.train.command import main

if __name__ == "__main__":
    raise SystemExit(main())
