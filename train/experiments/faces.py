"""ShiftFaceNet, on a folder of aligned faces with one folder for each identity.

    python -m train faces

trains on the folder faces, by ArcFace. With pairs of images in the format of LFW's
pairs.txt, the test at the end is the verification of the pairs, by LFW's protocol:

    python -m train faces --data.source folder:lfw \
        --faces.pairs pairs.txt --faces.images lfw

People in the pairs are left out of the training. `--faces.folds 1 2 3` tests those
folds alone, and leaves out their people alone. `--faces.loss softmax_center` is the
paper's loss, softmax cross-entropy with center loss. The plain network with as many
parameters is `--model.name facenet_resnet26_w11`.

The options were chosen on LFW, on held-out images of 826 people in training: after five
epochs 25.3% of these were recognized, and 8.4% with SGD, batches of 128, a margin of
0.5 and a scale of 64. No other options were tried.
"""

from train.config import Augment, Config, Data, Faces, Model, Optimizer, Schedule

CONFIG = Config(
    task="faces",
    workdir="runs/faces",
    epochs=20.0,
    batch_size=64,
    model=Model("shift_facenet"),
    data=Data(source="folder:faces", image_size=112),
    augment=Augment(crop_padding=4, flip=True),
    faces=Faces(margin=0.2, scale=30.0, min_images=2),
    optimizer=Optimizer(kind="muon", nesterov=True, decay="kernels"),
    schedule=Schedule(kind="one_cycle", learning_rate=0.1, warmup_epochs=3.0),
    eval_epochs=5.0,
    save_epochs=1.0,
)
