"""What a teacher is told and shown before it is asked: how to write, and eight stories of our own."""

from __future__ import annotations

SYSTEM = (
    "You write stories for small children. Each sentence has about ten simple words. Every sentence follows from the "
    "one before. You never write dialogue."
)

SHOWN = (
    (
        "Write a gentle story about a girl named Mia and a green scarf at the lake. It shows that kind people are "
        "near.",
        "Mia wore her green scarf to the lake on a windy day. The wind was strong and pulled the scarf from her neck. "
        "It flew over the water and landed in a small boat. Mia felt sad because her grandmother had made it for her. "
        "She called and waved, but nobody on the shore could help. An old man in the boat saw the scarf beside him. "
        "He turned his boat around and rowed back to the shore. It took him a long time because the waves were high. "
        "Mia thanked him and gave him half of her sandwich. They sat on the bench and watched the ducks together. The "
        "old man told her that he came there every morning. The scarf was wet, but it was still warm and soft. In the "
        "evening Mia hung it up next to the stove. The next day they baked a small cake for him.",
    ),
    (
        "Write a funny story about a cook and a lost spoon in a castle. It shows that looking twice helps.",
        "The cook could not find his big spoon in the kitchen. He looked in the oven, under the table and behind the "
        "door. Without the spoon he could not make soup for the king. He asked the guard, but the guard had not seen "
        "it. The maid looked in the garden and found only two snails. Soon everyone in the castle was searching for "
        "the spoon. The king was hungry and came down the stairs himself. He looked at the cook and began to laugh "
        "very loudly. The spoon was sticking out of the cook's tall white hat. The cook turned red and took the spoon "
        "from his hat. He had put it there while he was washing the carrots. Then he made a big pot of soup for "
        "everyone. The king liked it so much that he ate three bowls.",
    ),
    (
        "Write a brave story about a young rabbit and a lantern in a dark forest. It shows that love is stronger than "
        "fear.",
        "A young rabbit was afraid of the dark forest near his home. One night his little sister did not come back "
        "from the river. He took the old lantern and walked slowly between the tall trees. Every sound made him jump, "
        "but he did not turn around. An owl looked down at him and shook her big head. He asked her for the way, and "
        "she pointed with her wing. At last he heard his sister crying under a fallen tree. Her foot was stuck, and "
        "she could not move at all. He pushed the heavy branch away with all of his strength. Then he tied his scarf "
        "around her foot and helped her up. They walked home side by side in the light of the lantern. Their mother "
        "stood at the door and held them both. The forest did not seem so dark to him any more.",
    ),
    (
        "Write a quiet story about a farmer and a broken gate. It shows that neighbors matter.",
        "The gate on the farm had been broken since the winter. Every morning the goats ran out and ate the cabbages "
        "next door. The farmer was tired and had no time to repair it. His neighbor saw the empty garden, but he did "
        "not get angry. He brought a hammer, a box of nails and two new boards. Together they took the old gate down "
        "and cleaned the posts. The sun was hot, so they worked in the shade of a barn. The farmer's wife brought "
        "them cold milk and fresh bread. By the afternoon the new gate opened and closed without a sound. The goats "
        "stood behind it and looked very surprised. The farmer filled a basket with eggs and carried it next door. In "
        "the spring he planted new cabbages in his neighbor's garden.",
    ),
    (
        "Write a surprising story about twins and a strange egg on the beach. It shows that waiting is worth it.",
        "The twins found a large blue egg between the rocks. It was as big as a melon and warm on one side. One of "
        "them wanted to open it with a stone. The other one wanted to wait and see what happened. They made a nest of "
        "dry grass and put the egg inside. For three days they came back before breakfast and sat beside it. It "
        "rained on the second day, and they held a coat over the nest. On the fourth morning a small crack ran across "
        "the shell. A tiny gray beak came out and looked for something to eat. The twins brought little fish in a "
        "bucket of sea water. The bird grew fast and followed them along the beach. After the summer it was strong "
        "enough to fly to the islands. Every year it came back and landed on their roof.",
    ),
    (
        "Write a hopeful story about a postman and a letter without a name. It shows that everyone needs a friend.",
        "There was one letter left in the postman's bag. It had a red stamp, but nobody had written a name on it. He "
        "asked at the bakery, at the school and at the station. Nobody in the village was waiting for a letter. In "
        "the evening he sat down on the steps and opened it carefully. Inside was a picture of a house with a yellow "
        "door. He remembered that there was such a door at the end of the valley. An old woman lived there alone with "
        "her gray cat. He walked up the hill, although his feet were sore. When she saw the picture, she began to "
        "smile. Her grandson had painted it, but he was too small to write. She made a pot of tea and asked the "
        "postman to stay. He knocked on the yellow door every Friday, with or without a letter.",
    ),
    (
        "Write an exciting story about a sailor and a storm on the sea. It shows that working together helps.",
        "Black clouds came up behind the ship in the afternoon. The sailor on the mast saw them first and rang the "
        "bell. The men took down the sails and tied every barrel to the deck. Then the wind hit them, and the waves "
        "rose like hills. Water ran into the cabin faster than they could carry it out. The youngest of them found a "
        "hole near the floor. He pressed his own coat against it and called for help. Two men held the boards while "
        "another one drove in the nails. All night long they passed the buckets from hand to hand. When the sun came "
        "up, the sea was flat and silver. They counted each other and found that nobody was missing. The captain "
        "cooked breakfast himself and gave the boy the first plate.",
    ),
    (
        "Write a cozy story about a bear and a blanket in the snow. It shows that sharing keeps you warm.",
        "The bear had the thickest blanket in the whole forest. She had sewn it from old coats, one piece each year. "
        "That winter the snow reached up to the windows of her den. One night something scratched very softly at her "
        "door. A fox stood outside with ice on his tail. She let him in and gave him a corner of the blanket. Soon "
        "two squirrels came, and after them a wet owl. The bear pulled and folded, but the blanket was too small. So "
        "they all moved closer and lay down around the stove. The fox told them about the meadow where he was born. "
        "The squirrels had brought nuts, and they cracked them for everyone. Outside the storm shook the trees until "
        "the morning. The bear had never slept so well in her life.",
    ),
)
"""(what was asked, the story), about ten words a sentence. A teacher sees two of them: with the same two always, their
turns of phrase come back in one story of ten."""
