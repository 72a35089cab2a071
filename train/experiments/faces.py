"""ShiftFaceNet, on a folder of aligned faces with one folder for each identity.

    python -m train faces

trains on the folder faces, by ArcFace. With pairs of images in the format of LFW's
pairs.txt, the test at the end is the verification of the pairs, by LFW's protocol:

    python -m train faces --data.source folder:lfw \
        --faces.pairs pairs.txt --faces.images lfw

People in the pairs are left out of the training. `--faces.folds 1 2 3` tests those
folds alone, and leaves out their people alone. `--faces.loss softmax_center` is the
paper's loss, softmax cross-entropy with center loss. The plain network with as many
parameters is `--model.name facenet_resnet26_w11`. The options have not been tuned on
faces, and no accuracy is known yet.
"""

from train.config import Augment, Config, Data, Model, Schedule

CONFIG = Config(
    task="faces",
    workdir="runs/faces",
    epochs=40.0,
    batch_size=128,
    model=Model("shift_facenet"),
    data=Data(source="folder:faces", image_size=112),
    augment=Augment(crop_padding=4, flip=True),
    schedule=Schedule(learning_rate=0.1, warmup_epochs=2.0),
    eval_epochs=2.0,
    save_epochs=1.0,
)
