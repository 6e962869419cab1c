"""Pre-train a Director-Experts vision transformer as a masked autoencoder on medical images.

    python examples/pretrain_mvu.py                                   # sample images, minutes on two CPU
    cores python examples/pretrain_mvu.py --preset paper --data.store MVU   # the paper's recipe on a store of
    yours python examples/pretrain_mvu.py --resume                          # go on after a kill

Returns 0 when done, 2 after an error, 75 when a signal stopped it and ``--resume`` goes on.
"""

from dexcore.train.command import main

if __name__ == "__main__":
    raise SystemExit(main())
