from rows import Topic
import arena as the_arena
topic = Topic("deaths", the_arena.setup)
