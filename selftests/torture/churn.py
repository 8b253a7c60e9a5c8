from rows import Topic
import arena as the_arena
topic = Topic("churn", the_arena.setup)
