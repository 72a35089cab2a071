"""ShiftNet-A on ImageNet, 90 epochs in bfloat16 by the paper's recipe.

    python -m train imagenet_shiftnet_a

The data are `imagenet2012` of TensorFlow Datasets, in array_record files, which
`python -m train prepare imagenet2012` writes. A folder with `train/CLASS/*.JPEG` and
`val/CLASS/*.JPEG` is read by `--data.source folder:PATH`. The published top-1 accuracy
is 70.1%; this network has not been trained here.

10,000 training images are held out as the validation split, and the official
validation images are the test split, which is read once, at the end.
"""

from train.config import Augment, Config, Data, Model, Optimizer, Schedule

CONFIG = Config(
    workdir="runs/imagenet_shiftnet_a",
    epochs=90,
    batch_size=2048,
    eval_batch_size=2048,
    model=Model("shiftnet_a", dtype="bfloat16"),
    data=Data(
        source="tfds:imagenet2012",
        image_size=224,
        resize=256,
        validation_examples=10_000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    augment=Augment(crop_padding=0, flip=True, random_resized_crop=True),
    optimizer=Optimizer(kind="sgd", weight_decay=1e-4),
    schedule=Schedule(
        kind="steps", learning_rate=0.8, warmup_epochs=5, boundaries=(30, 60)
    ),
    log_steps=100,
)
