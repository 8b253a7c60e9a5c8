from rows import Topic
import arena as the_arena
topic = Topic("pressure", the_arena.setup)
