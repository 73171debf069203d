"""Word tables behind the everyday questions: what is asked about, and what is true of it.

Each table is a block of text, one fact a line, columns split by ``|``. The sentences around the
facts are in ``everyday.py``.
"""

from __future__ import annotations


def _rows(block: str) -> tuple[tuple[str, ...], ...]:
    """Split a block into rows, on ``;`` and line ends, and each row into its columns, on ``|``."""
    cells = block.replace("\n", ";").split(";")
    return tuple(tuple(part.strip() for part in cell.split("|")) for cell in cells if cell.strip())


def _words(block: str) -> tuple[str, ...]:
    return tuple(block.split())


CAPITALS = _rows(
    """France|Paris; Germany|Berlin; Italy|Rome; Spain|Madrid; Portugal|Lisbon; Greece|Athens
    Austria|Vienna; Poland|Warsaw; Hungary|Budapest; Norway|Oslo; Sweden|Stockholm
    Finland|Helsinki; Denmark|Copenhagen; Ireland|Dublin; England|London; Belgium|Brussels
    Russia|Moscow; Ukraine|Kyiv; Turkey|Ankara; Egypt|Cairo; Kenya|Nairobi; Ghana|Accra
    Japan|Tokyo; China|Beijing; India|New Delhi; Thailand|Bangkok; South Korea|Seoul
    Vietnam|Hanoi; Iran|Tehran; Iraq|Baghdad; Canada|Ottawa; Mexico|Mexico City; Cuba|Havana
    Brazil|Brasilia; Peru|Lima; Chile|Santiago; Argentina|Buenos Aires; Colombia|Bogota
    Australia|Canberra; New Zealand|Wellington; Iceland|Reykjavik; Scotland|Edinburgh"""
)

COLOURS = _rows(
    """the sky|blue; the sea|blue; grass|green; a leaf|green; a frog|green; a cucumber|green
    a lemon|yellow; a banana|yellow; the sun|yellow; butter|yellow; a chick|yellow; a tomato|red
    blood|red; a strawberry|red; a cherry|red; a fire engine|red; a ruby|red; an orange|orange
    a carrot|orange; a pumpkin|orange; snow|white; milk|white; salt|white; a swan|white
    a cloud|white; sugar|white; coal|black; the night|black; a raven|black; chocolate|brown
    coffee|brown; wood|brown; a bear|brown; a flamingo|pink; a pig|pink; an elephant|grey
    a mouse|grey; a plum|purple; an eggplant|purple; a violet|purple"""
)

# animal | sound it makes | name of its young | where it lives | what it eats | number of legs
ANIMALS = _rows(
    """dog|woof|puppy|a kennel|meat|4; cat|meow|kitten|a house|fish|4
    cow|moo|calf|a barn|grass|4; sheep|baa|lamb|a field|grass|4; horse|neigh|foal|a stable|hay|4
    pig|oink|piglet|a sty|corn|4; duck|quack|duckling|a pond|weeds|2
    hen|cluck|chick|a coop|grain|2; goat|bleat|kid|a farm|grass|4
    lion|roar|cub|the savanna|meat|4; bear|growl|cub|a cave|honey|4; owl|hoot|owlet|a tree|mice|2
    frog|croak|tadpole|a pond|flies|4; bee|buzz|larva|a hive|nectar|6; wolf|howl|pup|a den|meat|4
    bird|tweet|chick|a nest|seeds|2; mouse|squeak|pup|a hole|cheese|4
    snake|hiss|snakelet|a den|mice|0; rabbit|nothing|kit|a burrow|carrots|4
    spider|nothing|spiderling|a web|flies|8"""
)

OPPOSITES = _rows(
    """hot|cold; big|small; tall|short; fast|slow; up|down; left|right; old|young; happy|sad
    day|night; light|dark; open|closed; full|empty; hard|soft; wet|dry; rich|poor; loud|quiet
    early|late; clean|dirty; strong|weak; thick|thin; high|low; near|far; good|bad; first|last
    black|white; in|out; on|off; yes|no; love|hate; win|lose; buy|sell; start|stop; push|pull
    true|false; sweet|bitter; heavy|light; brave|afraid; awake|asleep; before|after; over|under
    friend|enemy; summer|winter; morning|evening; question|answer; cheap|expensive; wide|narrow
    deep|shallow; smooth|rough; sharp|blunt; alive|dead; always|never; give|take; laugh|cry"""
)

PLURALS = _rows(
    """cat|cats; dog|dogs; apple|apples; book|books; house|houses; tree|trees; box|boxes
    bus|buses; baby|babies; city|cities; lady|ladies; leaf|leaves; wolf|wolves; knife|knives
    man|men; woman|women; child|children; foot|feet; tooth|teeth; mouse|mice; goose|geese
    sheep|sheep; fish|fish; car|cars; hand|hands; glass|glasses; dish|dishes; story|stories"""
)

PAST_TENSES = _rows(
    """go|went; eat|ate; see|saw; run|ran; sing|sang; swim|swam; drink|drank; write|wrote
    read|read; take|took; give|gave; come|came; buy|bought; bring|brought; think|thought
    walk|walked; play|played; jump|jumped; look|looked; find|found; make|made; sleep|slept
    speak|spoke; drive|drove; fly|flew; sit|sat; stand|stood; win|won; lose|lost; begin|began"""
)

RHYMES = _rows(
    """cat|hat; dog|fog; sun|fun; moon|spoon; star|car; tree|bee; house|mouse; night|light
    day|play; rain|train; snow|go; ring|sing; cake|lake; bell|well; boat|coat; king|wing
    book|cook; ball|wall; bed|red; nose|rose; hand|sand; fish|dish; bear|chair; wing|ring"""
)

# task | tool
TOOLS = _rows(
    """cut paper|scissors; write a letter|a pen; open a lock|a key; eat soup|a spoon
    cut bread|a knife; sweep the floor|a broom; dig a hole|a spade; drive in a nail|a hammer
    brush your teeth|a toothbrush; comb your hair|a comb; tell the time|a clock; sew|a needle
    stay dry in the rain|an umbrella; make a call|a phone; paint a wall|a brush
    see far|a telescope; measure a table|a ruler; boil water|a kettle; catch fish|a net
    saw wood|a saw; climb a roof|a ladder; wash your hands|soap; dry your hair|a towel
    take a photo|a camera"""
)

# what they do | who they are
JOBS = _rows(
    """bakes bread|a baker; teaches children|a teacher; flies a plane|a pilot; cuts hair|a barber
    puts out fires|a firefighter; heals sick people|a doctor; fixes teeth|a dentist
    catches thieves|a policeman; grows food|a farmer; cooks in a restaurant|a chef
    drives a bus|a bus driver; paints pictures|an artist; writes books|a writer
    repairs cars|a mechanic; builds houses|a builder; brings the mail|a postman
    looks after sick animals|a vet; catches fish|a fisherman; sings songs|a singer
    makes clothes|a tailor; sells flowers|a florist; plays on stage|an actor"""
)

# thing | what it is made of
MATERIALS = _rows(
    """bread|flour; cheese|milk; butter|milk; wine|grapes; paper|wood; a window|glass
    a coin|metal; a candle|wax; a sweater|wool; a tyre|rubber; chocolate|cocoa; an omelette|eggs
    jam|fruit; a brick|clay; a snowman|snow; juice|fruit; ice|water; a book|paper; a chair|wood
    soup|water"""
)

# thing | the group it belongs to
GROUPS = _rows(
    """an apple|fruit; a pear|fruit; a banana|fruit; a grape|fruit; a cherry|fruit; a peach|fruit
    a carrot|vegetable; an onion|vegetable; a potato|vegetable; a cabbage|vegetable; a dog|animal
    a tiger|animal; a horse|animal; a monkey|animal; a whale|animal; a cat|animal; a rose|flower
    a tulip|flower; a daisy|flower; a lily|flower; a hammer|tool; a saw|tool; a drill|tool
    red|colour; blue|colour; green|colour; a piano|instrument; a guitar|instrument
    a violin|instrument; a drum|instrument; a chair|furniture; a table|furniture; a bed|furniture
    a sofa|furniture; a shirt|clothing; a sock|clothing; a hat|clothing; a coat|clothing
    football|sport; tennis|sport; golf|sport; a car|vehicle; a bus|vehicle; a train|vehicle
    tea|drink; water|drink; coffee|drink; milk|drink; gold|metal; iron|metal; silver|metal"""
)

# state of the weather | what to wear or take
WEATHER = _rows(
    """raining|an umbrella; snowing|warm boots; sunny|a sun hat; windy|a jacket; cold|a warm coat
    hot|a light shirt; freezing|gloves and a scarf; cloudy|a sweater; stormy|a raincoat"""
)

# what the weather does | what to wear or take
WEATHER_VERBS = _rows("rains|an umbrella; snows|warm boots; storms|a raincoat; freezes|a scarf")

# what can be done | who can | who cannot
ABILITIES = _rows(
    """fly|birds bees owls ducks|dogs cats pigs cows fish; swim|fish ducks frogs whales|hens
    bark|dogs|cats cows birds fish; climb trees|cats bears monkeys|horses cows fish
    talk|people|cars stones tables; read|people|dogs cats cows; run fast|horses dogs lions|snails
    give milk|cows goats|birds frogs bees; lay eggs|hens ducks birds|dogs cats cows"""
)

# things that one may like
LIKES = _rows(
    """pizza; cheese; apples; chocolate; bread; soup; fish; cake; tea; coffee; music; books; cats
    dogs; horses; the sea; the sun; snow; rain; summer; winter; football; games; films; flowers"""
)

SENSES = _rows(
    """see|eyes; hear|ears; smell|nose; taste|tongue; walk|feet; write|hand; chew|teeth
    think|brain; breathe|lungs; touch|fingers; kick a ball|foot; speak|mouth"""
)

# question with a plain yes or no | answer
YES_NO = _rows(
    """Is the sky blue?|Yes, the sky is blue.; Is fire cold?|No, fire is hot.
    Can fish swim?|Yes, fish can swim.; Can pigs fly?|No, pigs cannot fly.
    Can birds fly?|Yes, most birds can fly.; Is ice hot?|No, ice is cold.
    Is the sun a star?|Yes, the sun is a star.; Do cats bark?|No, cats meow.
    Do dogs bark?|Yes, dogs bark.; Is a tomato blue?|No, a tomato is red.
    Is water wet?|Yes, water is wet.; Can a snail run fast?|No, a snail is slow.
    Is a whale bigger than a mouse?|Yes, a whale is much bigger.
    Is snow white?|Yes, snow is white.; Does a week have ten days?|No, a week has 7 days.
    Is lemon sour?|Yes, a lemon is sour.; Is sugar salty?|No, sugar is sweet.
    Do spiders have 8 legs?|Yes, spiders have 8 legs.
    Is the moon made of cheese?|No, the moon is made of rock.
    Do cows give milk?|Yes, cows give milk.; Can people breathe under water?|No, people need air.
    Do trees have leaves?|Yes, trees have leaves.; Is Paris in France?|Yes, Paris is in France.
    Is Rome in Japan?|No, Rome is in Italy."""
)

# question | answer, for one-off facts
TRIVIA = _rows(
    """How many days are in a week?|There are 7 days in a week.
    How many months are in a year?|There are 12 months in a year.
    How many hours are in a day?|There are 24 hours in a day.
    How many minutes are in an hour?|There are 60 minutes in an hour.
    How many seconds are in a minute?|There are 60 seconds in a minute.
    How many days are in a year?|There are 365 days in a year.
    How many legs does a spider have?|A spider has 8 legs.
    How many wheels does a car have?|A car has 4 wheels.
    How many wheels does a bicycle have?|A bicycle has 2 wheels.
    How many fingers are on one hand?|There are 5 fingers on one hand.
    How many sides does a triangle have?|A triangle has 3 sides.
    How many sides does a square have?|A square has 4 sides.
    How many eyes do people have?|People have 2 eyes.
    What is the largest ocean?|The largest ocean is the Pacific.
    What is the largest animal?|The largest animal is the blue whale.
    What is the tallest animal?|The tallest animal is the giraffe.
    What is the fastest animal on land?|The fastest animal on land is the cheetah.
    What is the longest river?|The longest river is the Nile.
    What is the highest mountain?|The highest mountain is Mount Everest.
    What is the biggest planet?|The biggest planet is Jupiter.
    Which planet do we live on?|We live on Earth.
    Where does the sun rise?|The sun rises in the east.
    Where does the sun set?|The sun sets in the west.; What do bees make?|Bees make honey.
    What do plants need to grow?|Plants need water and light.
    What is frozen water called?|Frozen water is called ice.
    What falls from clouds?|Rain falls from clouds.
    What shines at night?|The moon shines at night.
    What do you drink when you are thirsty?|When I am thirsty I would drink water.
    What do people eat for breakfast?|Many people eat bread or cereal for breakfast.
    When do people sleep?|People sleep at night.; Who wrote Hamlet?|Shakespeare wrote Hamlet.
    Who painted the Mona Lisa?|Leonardo da Vinci painted the Mona Lisa."""
)

# what the user says | what is answered; several phrasings of one thing are split by "/"
SMALL_TALK = _rows(
    """Hello/Hi/Hey/Hi there/Hello there/Good day|Hello! How can I help you?
    Good morning|Good morning! How can I help you?
    Good evening|Good evening! How can I help you?; Good night|Good night! Sleep well.
    Goodbye/Bye/See you later/See you|Goodbye! Have a nice day.
    How are you/How are you doing/How do you do/How is it going|I am fine, thank you. How are you?
    Thank you/Thanks/Thanks a lot/Thank you very much|You are welcome!
    What is your name/Who are you/What are you called/Tell me your name|My name is Tiny.
    Are you a robot/Are you human/Are you a person/Are you real|I am a small chat model.
    How old are you|I am a very young model.; Where do you live|I live in a computer.
    What can you do/How can you help me/What do you know|I can answer short everyday questions.
    Do you sleep|No, I never sleep.; What time is it/What is the time|I do not know the time.
    Do you like me|Yes, I like you.; Do you eat|No, I am a model. I do not eat.
    I am sad/I feel sad/I am unhappy|I am sorry to hear that. I hope you feel better soon.
    I am happy/I feel great/I feel good|I am glad to hear that!
    I am tired/I feel tired|You should get some rest.; I am cold|You should put on a warm coat.
    I am hungry/I feel hungry|You should eat something good.
    I am hot|You should drink cold water.
    I am thirsty/I feel thirsty|You should drink some water.
    I am ill/I feel sick|You should see a doctor.
    I am bored/I feel bored|You could read a book or go for a walk.
    It is my birthday/Today is my birthday|Happy birthday!; I won a prize|Well done!
    I passed my test/I passed my exam|Well done! I am proud of you.
    I lost my key/I lost my keys|I am sorry. Look where you last had it.
    Tell me a joke/Do you know a joke/Make me laugh|What has 4 legs and cannot walk? A table.
    Tell me a story/Tell me a short story|Once there was a little cat who found a warm home.
    Can you help me/Help me/I need help|Of course. What do you need?
    What is your favourite colour/Which colour do you like best|My favourite colour is blue.
    I love you|That is very kind of you.
    What is your favourite food/Which food do you like best|My favourite food is soup.
    Sorry/I am sorry|That is all right.
    What is your favourite animal/Which animal do you like best|My favourite animal is the cat.
    Nice to meet you|Nice to meet you too!
    What should I eat/What should I cook/What should I have for dinner|You could make a warm soup.
    What should I drink|You could drink a cup of tea.
    What should I read|You could read a good story.
    What should I do today/What should I do now|You could go for a walk.
    What day is it/What day is it today/What is the date|I do not know the date.
    Say hello|Hello!; Say goodbye|Goodbye!; Say yes|Yes.; Say no|No."""
)

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

# month | its number of days | season in the north
MONTHS = _rows(
    """January|31|winter; February|28|winter; March|31|spring; April|30|spring; May|31|spring
    June|30|summer; July|31|summer; August|31|summer; September|30|autumn; October|31|autumn
    November|30|autumn; December|31|winter"""
)

# from small to big
SIZES = _words("ant mouse rabbit cat dog sheep horse elephant whale")

NUMBER_WORDS = _words("zero one two three four five six seven eight nine ten")

NAMES = _words("Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul")
