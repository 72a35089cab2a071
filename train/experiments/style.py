"""The paper's shift network for style transfer, on a folder of images.

    python -m train style

learns the style of painting.jpg from the images in the folder pictures. The losses
compare features of VGG-16, whose weights are in vgg16.pth (torchvision's state dict,
written by `torch.save`). Each of these paths has an option. Without a file of weights,
features of a released network can be compared:

    python -m train style --style.image starry.jpg --data.source folder:coco \
        --style.features shiftresnet20_e6.cifar10 --style.weights None

The paper's recipe is Adam at 0.001, batches of 4 images of 256x256 and two epochs of
the 82,783 images of COCO 2014, which are 41,392 steps. `--model.name stylizer` is its
network without shifts, with 6.5 times as many parameters. `sample.png` in the run's
folder shows a restyled image.
"""

from train.config import Augment, Config, Data, Model, Optimizer, Schedule, Style

CONFIG = Config(
    task="style",
    workdir="runs/style",
    epochs=2,
    batch_size=4,
    eval_batch_size=4,
    model=Model("shift_stylizer"),
    data=Data(source="folder:pictures", image_size=256, validation_examples=16),
    augment=Augment(crop_padding=0, flip=True),
    style=Style(image="painting.jpg", weights="vgg16.pth"),
    optimizer=Optimizer(kind="adam", weight_decay=0.0),
    schedule=Schedule(kind="constant", learning_rate=1e-3),
    eval_epochs=0.1,
    save_epochs=0.1,
)
