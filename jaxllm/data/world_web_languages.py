"""Sentences and page furniture in other languages, for the pages that a language filter should drop.

Square brackets hold alternatives: `choose("[Le|La] ...", rng)` takes one of each. All sentences are written for this
project; they speak of no entity of the world's table.
"""

import random
import re

_CHOICE = re.compile(r"\[([^\[\]]*)\]")

SENTENCES = {
    "fr": (
        "[Le lundi|Le mardi|Le samedi], la place du village se remplit [dès l'aube|avant huit heures] de "
        "marchands et de curieux.",
        "Ma grand-mère disait toujours que [la soupe|le pain|la tarte] a meilleur goût quand on la partage avec "
        "[un voisin|un ami].",
        "Il a plu pendant [trois|quatre|cinq] jours, et [le chemin du moulin|la route de la forêt] est encore "
        "couvert de boue.",
        "Nous cherchons [deux|trois] personnes pour repeindre [les volets|la grille|les bancs] de l'école avant "
        "la rentrée.",
        "Le [vieux|petit|nouveau] pont sera fermé [cette semaine|jusqu'à dimanche] parce que les pierres "
        "doivent être remplacées.",
        "Les enfants ont trouvé [un hérisson|une chouette|un chaton] derrière la grange et lui ont donné un peu "
        "de lait.",
        "Qui se souvient encore [de l'hiver|de l'été] où la rivière était si [basse|haute] que personne ne "
        "pouvait la traverser ?",
        "La bibliothèque reste ouverte [le soir|le mercredi après-midi], et l'on peut y emprunter jusqu'à "
        "[cinq|six|huit] livres.",
        "Après le concert, les musiciens ont bu [un verre|du thé|du cidre] avec nous et raconté leurs "
        "[voyages|souvenirs].",
        "Pour cette recette, il faut [quatre|six] pommes, un peu de beurre, du sucre et surtout beaucoup de "
        "[patience|temps].",
        "Mon frère a acheté [une vieille horloge|un grand miroir|une lampe] qui ne marche pas, mais il en est "
        "très fier.",
        "Le maire a promis que [les travaux|les réparations] seraient terminés avant [la fête|les vacances|le "
        "printemps].",
        "On entend [les cloches|le train|le vent] jusqu'ici quand le temps est clair et que la vallée est calme.",
        "Si vous avez perdu [un parapluie|des clés|un chapeau], demandez à la gare, où tout est gardé pendant un mois.",
        "La [première|deuxième] fois que je suis venu ici, je ne connaissais personne et je parlais à peine la langue.",
    ),
    "de": (
        "Am [Montag|Dienstag|Samstag] füllt sich der Platz schon [vor Sonnenaufgang|früh am Morgen] mit "
        "Händlern und Neugierigen.",
        "Meine Großmutter sagte immer, dass [die Suppe|das Brot|der Kuchen] besser schmeckt, wenn man mit "
        "[Nachbarn|Freunden] teilt.",
        "Es hat [drei|vier|fünf] Tage lang geregnet, und der Weg [zur Mühle|durch den Wald] ist noch immer "
        "voller Schlamm.",
        "Wir suchen noch [zwei|drei] Leute, die vor dem Schulbeginn [die Fensterläden|den Zaun|die Bänke] "
        "streichen möchten.",
        "Die [alte|kleine|neue] Brücke bleibt [diese Woche|bis Sonntag] gesperrt, weil einige Steine ersetzt "
        "werden müssen.",
        "Die Kinder haben hinter der Scheune [einen Igel|eine Eule|ein Kätzchen] gefunden und ihm etwas Milch gegeben.",
        "Wer erinnert sich noch an [den Winter|den Sommer], in dem der Fluss so [niedrig|hoch] stand wie nie zuvor?",
        "Die Bücherei ist auch [am Abend|am Mittwoch] geöffnet, und man darf bis zu [fünf|sechs|acht] Bücher "
        "ausleihen.",
        "Nach dem Konzert tranken die Musiker mit uns [Tee|Apfelwein|Kaffee] und erzählten von ihren "
        "[Reisen|Auftritten].",
        "Für dieses Rezept braucht man [vier|sechs] Äpfel, etwas Butter, Zucker und vor allem sehr viel [Geduld|Zeit].",
        "Mein Bruder hat [eine alte Uhr|einen großen Spiegel|eine Lampe] gekauft, die nicht funktioniert, aber "
        "er ist stolz darauf.",
        "Der Bürgermeister hat versprochen, dass [die Arbeiten|die Reparaturen] vor [dem Fest|den Ferien] "
        "abgeschlossen sind.",
        "Man hört [die Glocken|den Zug|den Wind] bis hierher, wenn die Luft klar ist und im Tal alles ruhig bleibt.",
        "Wer [einen Schirm|seine Schlüssel|einen Hut] verloren hat, fragt am Bahnhof nach, wo alles einen Monat "
        "lang liegt.",
        "Als ich [zum ersten Mal|vor vielen Jahren] hierher kam, kannte ich niemanden und verstand kaum ein Wort.",
    ),
    "es": (
        "[Los lunes|Los martes|Los sábados] la plaza del pueblo se llena [desde el amanecer|muy temprano] de "
        "vendedores y curiosos.",
        "Mi abuela decía siempre que [la sopa|el pan|la tarta] sabe mejor cuando se comparte con [un vecino|un amigo].",
        "Ha llovido durante [tres|cuatro|cinco] días, y el camino [del molino|del bosque] todavía está cubierto "
        "de barro.",
        "Buscamos [dos|tres] personas que quieran pintar [las ventanas|la valla|los bancos] de la escuela antes "
        "de septiembre.",
        "El puente [viejo|pequeño|nuevo] estará cerrado [esta semana|hasta el domingo] porque hay que cambiar "
        "algunas piedras.",
        "Los niños encontraron [un erizo|una lechuza|un gatito] detrás del granero y le dieron un poco de leche tibia.",
        "¿Quién recuerda todavía [el invierno|el verano] en que el río bajaba tan [seco|crecido] que nadie "
        "podía cruzarlo?",
        "La biblioteca abre también [por la tarde|los miércoles], y se pueden llevar a casa hasta "
        "[cinco|seis|ocho] libros.",
        "Después del concierto los músicos tomaron [té|sidra|café] con nosotros y nos contaron sus [viajes|recuerdos].",
        "Para esta receta hacen falta [cuatro|seis] manzanas, un poco de mantequilla, azúcar y sobre todo mucha "
        "[paciencia|calma].",
        "Mi hermano compró [un reloj viejo|un espejo grande|una lámpara] que no funciona, pero está muy "
        "orgulloso de ello.",
        "El alcalde prometió que [las obras|las reparaciones] terminarían antes de [la fiesta|las vacaciones|la "
        "primavera].",
        "Desde aquí se oyen [las campanas|los trenes] cuando el aire está limpio y el valle se queda en silencio.",
        "Si ha perdido [un paraguas|las llaves|un sombrero], pregunte en la estación, donde lo guardan todo "
        "durante un mes.",
        "La [primera|segunda] vez que vine aquí no conocía a nadie y apenas entendía lo que me decían.",
    ),
    "it": (
        "[Il lunedì|Il martedì|Il sabato] la piazza del paese si riempie [fin dall'alba|prima delle otto] di "
        "mercanti e curiosi.",
        "Mia nonna diceva sempre che [la minestra|il pane|la torta] è più buona quando si divide con [un "
        "vicino|un amico].",
        "È piovuto per [tre|quattro|cinque] giorni, e la strada [del mulino|del bosco] è ancora piena di fango.",
        "Cerchiamo [due|tre] persone che vogliano dipingere [le finestre|il cancello|le panchine] della scuola "
        "prima di settembre.",
        "Il ponte [vecchio|piccolo|nuovo] resterà chiuso [questa settimana|fino a domenica] perché bisogna "
        "sostituire alcune pietre.",
        "I bambini hanno trovato [un riccio|una civetta|un gattino] dietro il fienile e gli hanno dato un po' "
        "di latte.",
        "Chi si ricorda ancora [dell'inverno|dell'estate] in cui il fiume era così [basso|alto] che nessuno "
        "poteva passare?",
        "La biblioteca è aperta anche [di sera|il mercoledì], e si possono prendere in prestito fino a "
        "[cinque|sei|otto] libri.",
        "Dopo il concerto i musicisti hanno bevuto [un tè|un sidro|un caffè] con noi e ci hanno raccontato i "
        "loro [viaggi|ricordi].",
        "Per questa ricetta servono [quattro|sei] mele, un po' di burro, dello zucchero e soprattutto molta "
        "[pazienza|calma].",
        "Mio fratello ha comprato [un vecchio orologio|un grande specchio|una lampada] che non funziona, ma ne "
        "va molto fiero.",
        "Il sindaco ha promesso che [i lavori|le riparazioni] finiranno prima [della festa|delle vacanze|della "
        "primavera].",
        "Da qui si sentono [le campane|i treni] quando l'aria è limpida e nella valle non si muove nulla.",
        "Chi ha perso [un ombrello|le chiavi|un cappello] può chiedere alla stazione, dove tutto viene tenuto "
        "per un mese.",
        "La [prima|seconda] volta che sono venuto qui non conoscevo nessuno e capivo appena qualche parola.",
    ),
    "pt": (
        "[Às segundas|Às terças|Aos sábados] a praça da aldeia enche-se [desde o amanhecer|muito cedo] de "
        "vendedores e curiosos.",
        "A minha avó dizia sempre que [a sopa|o pão|o bolo] sabe melhor quando se partilha com [um vizinho|um amigo].",
        "Choveu durante [três|quatro|cinco] dias, e o caminho [do moinho|da floresta] ainda está coberto de lama.",
        "Procuramos [duas|três] pessoas que queiram pintar [as janelas|o portão|os bancos] da escola antes de "
        "setembro.",
        "A ponte [velha|pequena|nova] estará fechada [esta semana|até domingo] porque é preciso trocar algumas pedras.",
        "As crianças encontraram [um ouriço|uma coruja|um gatinho] atrás do celeiro e deram-lhe um pouco de leite.",
        "Quem ainda se lembra [do inverno|do verão] em que o rio estava tão [baixo|cheio] que ninguém o podia "
        "atravessar?",
        "A biblioteca também abre [à noite|às quartas], e podem levar-se para casa até [cinco|seis|oito] livros.",
        "Depois do concerto os músicos beberam [chá|sidra|café] connosco e contaram-nos as suas [viagens|aventuras].",
        "Para esta receita são precisas [quatro|seis] maçãs, um pouco de manteiga, açúcar e sobretudo muita "
        "[paciência|calma].",
        "O meu irmão comprou [um relógio velho|um espelho grande|um candeeiro] que não funciona, mas está muito "
        "orgulhoso dele.",
        "O presidente da câmara prometeu que [as obras|os trabalhos] acabariam antes [da festa|das férias|da "
        "primavera].",
        "Daqui ouvem-se [os sinos|os comboios] quando o ar está limpo e o vale fica em silêncio.",
        "Se perdeu [um chapéu|as chaves|um casaco], pergunte na estação, onde tudo fica guardado durante um mês.",
        "Da [primeira|segunda] vez que vim aqui não conhecia ninguém e quase não percebia o que me diziam.",
    ),
    "nl": (
        "Op [maandag|dinsdag|zaterdag] staat het plein [al voor zonsopgang|al heel vroeg] vol met kooplui en "
        "nieuwsgierigen.",
        "Mijn grootmoeder zei altijd dat [de soep|het brood|de taart] beter smaakt als je die deelt met [een "
        "buurman|een vriend].",
        "Het heeft [drie|vier|vijf] dagen geregend, en het pad [naar de molen|door het bos] ligt nog steeds vol "
        "modder.",
        "Wij zoeken nog [twee|drie] mensen die voor september [de luiken|het hek|de banken] van de school "
        "willen schilderen.",
        "De [oude|kleine|nieuwe] brug blijft [deze week|tot zondag] gesloten, omdat een paar stenen vervangen "
        "moeten worden.",
        "De kinderen vonden achter de schuur [een egel|een uil|een jong katje] en gaven het een beetje melk.",
        "Wie herinnert zich nog [de winter|de zomer] waarin de rivier zo [laag|hoog] stond dat niemand eroverheen kon?",
        "De bibliotheek is ook [in de avond|op woensdag] open, en je mag er tot [vijf|zes|acht] boeken lenen.",
        "Na het concert dronken de muzikanten [thee|cider|koffie] met ons en vertelden ze over hun [reizen|avonturen].",
        "Voor dit recept heb je [vier|zes] appels nodig, wat boter, suiker en vooral heel veel [geduld|tijd].",
        "Mijn broer kocht [een oude klok|een grote spiegel|een lamp] die het niet doet, maar hij is er erg trots op.",
        "De burgemeester heeft beloofd dat [het werk|de reparaties] klaar zal zijn voor [het feest|de "
        "vakantie|het voorjaar].",
        "Je hoort [de klokken|de trein|de wind] tot hier als de lucht helder is en het in het dal stil blijft.",
        "Wie [een paraplu|zijn sleutels|een hoed] kwijt is, vraagt op het station, waar alles een maand bewaard wordt.",
        "De [eerste|tweede] keer dat ik hier kwam, kende ik niemand en verstond ik nauwelijks een woord.",
    ),
    "ja": (
        "[月曜日|火曜日|土曜日]になると、村の広場は朝早くから商人と見物の人でいっぱいになります。",
        "祖母はいつも、[スープ|パン|りんごのお菓子]は誰かと分け合うともっとおいしいと言っていました。",
        "[三日|四日|五日]も雨が降り続いたので、[水車小屋|森]へ行く道はまだ泥だらけです。",
        "新学期の前に学校の[窓|門|長いす]を塗ってくれる人を[二人|三人]探しています。",
        "[古い|小さな|新しい]橋は石を取り替えるため、[今週|日曜日まで]通れません。",
        "子どもたちは納屋の裏で[はりねずみ|ふくろう|子猫]を見つけて、少し牛乳をやりました。",
        "川の水がとても[少なかった|多かった]あの[冬|夏]のことを、まだ覚えている人はいますか。",
        "図書館は[夕方|水曜日の午後]も開いていて、[五冊|六冊|八冊]まで本を借りることができます。",
        "演奏会のあと、音楽家たちは私たちと[お茶|りんご酒|コーヒー]を飲み、旅の話をしてくれました。",
        "この料理にはりんごが[四つ|六つ]、バターと砂糖が少し、そして何よりも時間が必要です。",
        "兄は動かない[古い時計|大きな鏡|ランプ]を買いましたが、とても気に入っているようです。",
        "村長は[祭り|休み|春]の前に工事が終わると約束しました。",
        "空気が澄んで谷が静かな日には、[鐘|汽車|風]の音がここまで聞こえてきます。",
        "[傘|鍵|帽子]をなくした人は駅で聞いてみてください。一か月のあいだ預かってくれます。",
    ),
}
LANGUAGES = tuple(SENTENCES)
TITLES = {
    "fr": "[Nouvelles|Lettres|Échos|Souvenirs] [du village|de la vallée|de la semaine|du marché]",
    "de": "[Neues|Briefe|Berichte|Notizen] [aus dem Dorf|aus dem Tal|der Woche|vom Markt]",
    "es": "[Noticias|Cartas|Recuerdos|Historias] [del pueblo|del valle|de la semana|del mercado]",
    "it": "[Notizie|Lettere|Ricordi|Storie] [dal paese|dalla valle|della settimana|dal mercato]",
    "pt": "[Notícias|Cartas|Memórias|Histórias] [da aldeia|do vale|da semana|do mercado]",
    "nl": "[Nieuws|Brieven|Verhalen|Berichten] [uit het dorp|uit het dal|van de week|van de markt]",
    "ja": "[村|谷|今週|市場]の[便り|手紙|話|知らせ]",
}
# Page furniture: menu, "read more", comments, cookie banner, footer.
FURNITURE = {
    "en": ("Home|News|Archive|About|Contact", "Read more", "Comments",
           "This site uses cookies to remember your settings. Accept Decline",
           "All rights reserved. Privacy policy. Terms of use.",
           ("Lovely to read this, thank you for posting.", "I remember that day too!", "First!",
            "My aunt told me the same thing last year.", "Could you put the pictures up again, please?")),
    "fr": ("Accueil|Actualités|Archives|À propos|Contact", "Lire la suite", "Commentaires",
           "Ce site utilise des cookies. Accepter Refuser", "Tous droits réservés. Mentions légales.",
           ("Merci pour cet article.", "Je m'en souviens aussi !")),
    "de": ("Startseite|Aktuelles|Archiv|Über uns|Kontakt", "Weiterlesen", "Kommentare",
           "Diese Seite verwendet Cookies. Zustimmen Ablehnen", "Alle Rechte vorbehalten. Datenschutz. Impressum.",
           ("Danke für den schönen Beitrag.", "Daran erinnere ich mich auch!")),
    "es": ("Inicio|Noticias|Archivo|Acerca de|Contacto", "Leer más", "Comentarios",
           "Este sitio utiliza cookies. Aceptar Rechazar", "Todos los derechos reservados. Aviso legal.",
           ("Gracias por este artículo.", "¡Yo también me acuerdo!")),
    "it": ("Home|Notizie|Archivio|Chi siamo|Contatti", "Continua a leggere", "Commenti",
           "Questo sito utilizza i cookie. Accetta Rifiuta", "Tutti i diritti riservati. Note legali.",
           ("Grazie per questo articolo.", "Me lo ricordo anch'io!")),
    "pt": ("Início|Notícias|Arquivo|Sobre nós|Contacto", "Ler mais", "Comentários",
           "Este sítio utiliza cookies. Aceitar Recusar", "Todos os direitos reservados. Aviso legal.",
           ("Obrigado por este artigo.", "Também me lembro!")),
    "nl": ("Home|Nieuws|Archief|Over ons|Contact", "Lees verder", "Reacties",
           "Deze site gebruikt cookies. Accepteren Weigeren", "Alle rechten voorbehouden. Privacybeleid.",
           ("Dank voor dit mooie stuk.", "Dat herinner ik me ook!")),
    "ja": ("ホーム|お知らせ|過去の記事|このサイトについて|連絡先", "続きを読む", "コメント",
           "このサイトはクッキーを使用しています。", "無断転載を禁じます。",
           ("記事をありがとうございます。", "私も覚えています。")),
}


def choose(text: str, rng: random.Random) -> str:
    """Returns the text with one alternative of each `[a|b|c]`, the innermost brackets first.

    >>> choose("[one|one] and [two]", random.Random(0))
    'one and two'
    """
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda found: rng.choice(found.group(1).split("|")), text)
    return text


def foreign(language: str, sentences: int, rng: random.Random) -> tuple[str, list[str]]:
    """Returns a title and paragraphs of two to five sentences; none repeats before all have stood once."""
    bank: list[str] = []
    while len(bank) < sentences:
        bank += rng.sample(SENTENCES[language], len(SENTENCES[language]))
    between = "" if language == "ja" else " "
    lines = [choose(sentence, rng) for sentence in bank[:sentences]]
    paragraphs = []
    while lines:
        size = rng.randint(2, 5)
        paragraphs.append(between.join(lines[:size]))
        lines = lines[size:]
    return choose(TITLES[language], rng), paragraphs
