"""The WordNet synset of each of COCO's 80 categories, as LVIS uses them: the key between the two data sets."""

__all__ = ["COCO_ID_OF_SYNSET"]

COCO_ID_OF_SYNSET = {
    "person.n.01": 1,
    "bicycle.n.01": 2,
    "car.n.01": 3,
    "motorcycle.n.01": 4,
    "airplane.n.01": 5,
    "bus.n.01": 6,
    "train.n.01": 7,
    "truck.n.01": 8,
    "boat.n.01": 9,
    "traffic_light.n.01": 10,
    "fireplug.n.01": 11,  # fire hydrant
    "stop_sign.n.01": 13,
    "parking_meter.n.01": 14,
    "bench.n.01": 15,
    "bird.n.01": 16,
    "cat.n.01": 17,
    "dog.n.01": 18,
    "horse.n.01": 19,
    "sheep.n.01": 20,
    "beef.n.01": 21,  # cow
    "elephant.n.01": 22,
    "bear.n.01": 23,
    "zebra.n.01": 24,
    "giraffe.n.01": 25,
    "backpack.n.01": 27,
    "umbrella.n.01": 28,
    "bag.n.04": 31,  # handbag
    "necktie.n.01": 32,  # tie
    "bag.n.06": 33,  # suitcase
    "frisbee.n.01": 34,
    "ski.n.01": 35,  # skis
    "snowboard.n.01": 36,
    "ball.n.06": 37,  # sports ball
    "kite.n.03": 38,
    "baseball_bat.n.01": 39,
    "baseball_glove.n.01": 40,
    "skateboard.n.01": 41,
    "surfboard.n.01": 42,
    "tennis_racket.n.01": 43,
    "bottle.n.01": 44,
    "wineglass.n.01": 46,  # wine glass
    "cup.n.01": 47,
    "fork.n.01": 48,
    "knife.n.01": 49,
    "spoon.n.01": 50,
    "bowl.n.03": 51,
    "banana.n.02": 52,
    "apple.n.01": 53,
    "sandwich.n.01": 54,
    "orange.n.01": 55,
    "broccoli.n.01": 56,
    "carrot.n.01": 57,
    "frank.n.02": 58,  # hot dog
    "pizza.n.01": 59,
    "doughnut.n.02": 60,  # donut
    "cake.n.03": 61,
    "chair.n.01": 62,
    "sofa.n.01": 63,  # couch
    "pot.n.04": 64,  # potted plant
    "bed.n.01": 65,
    "dining_table.n.01": 67,
    "toilet.n.02": 70,
    "television_receiver.n.01": 72,  # tv
    "laptop.n.01": 73,
    "mouse.n.04": 74,
    "remote_control.n.01": 75,  # remote
    "computer_keyboard.n.01": 76,  # keyboard
    "cellular_telephone.n.01": 77,  # cell phone
    "microwave.n.02": 78,
    "oven.n.01": 79,
    "toaster.n.02": 80,
    "sink.n.01": 81,
    "electric_refrigerator.n.01": 82,  # refrigerator
    "book.n.01": 84,
    "clock.n.01": 85,
    "vase.n.01": 86,
    "scissors.n.01": 87,
    "teddy.n.01": 88,  # teddy bear
    "hand_blower.n.01": 89,  # hair drier
    "toothbrush.n.01": 90,
}
