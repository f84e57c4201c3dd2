package org.edgevlm.app;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;

/** The conversation on disk, so that it outlives the process: texts, and the names of picture files beside it. */
final class SavedConversation {
    private static final int MAGIC = 0x45564331;
    private static final int MAX_TURNS = 10_000;

    /** One question with its pictures and its answer; the answer of the last turn may be missing. */
    static final class Turn {
        final String question;
        final List<String> pictures;
        String answer;

        Turn(String question, List<String> pictures, String answer) {
            this.question = question;
            this.pictures = new ArrayList<>(pictures);
            this.answer = answer;
        }
    }

    /** What stands in the conversation. */
    final List<Turn> turns = new ArrayList<>();
    /** Pictures of the question that is being typed. */
    final List<String> attached = new ArrayList<>();
    /** The question that is being typed. */
    String draft = "";

    /** Writes beside `file` and renames, so that a kill leaves the old or the new one. */
    void write(File file) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(bytes);
        out.writeInt(MAGIC);
        text(out, draft);
        texts(out, attached);
        out.writeInt(turns.size());
        for (Turn turn : turns) {
            text(out, turn.question);
            texts(out, turn.pictures);
            out.writeBoolean(turn.answer != null);
            if (turn.answer != null) {
                text(out, turn.answer);
            }
        }
        File partial = new File(file.getPath() + ".partial");
        try (FileOutputStream target = new FileOutputStream(partial)) {
            target.write(bytes.toByteArray());
            target.getFD().sync();
        }
        if (!partial.renameTo(file)) {
            throw new IOException(file + ": cannot be put in place");
        }
    }

    /** Returns what `file` holds; an empty conversation when there is none or it is damaged. */
    static SavedConversation read(File file) {
        byte[] bytes = new byte[(int) file.length()];
        try (DataInputStream whole = new DataInputStream(new FileInputStream(file))) {
            whole.readFully(bytes);
            DataInputStream in = new DataInputStream(new ByteArrayInputStream(bytes));
            if (in.readInt() != MAGIC) {
                return new SavedConversation();
            }
            SavedConversation saved = new SavedConversation();
            saved.draft = text(in);
            saved.attached.addAll(texts(in));
            int count = in.readInt();
            if (count < 0 || count > MAX_TURNS) {
                return new SavedConversation();
            }
            for (int i = 0; i < count; i++) {
                String question = text(in);
                List<String> pictures = texts(in);
                saved.turns.add(new Turn(question, pictures, in.readBoolean() ? text(in) : null));
            }
            return saved;
        } catch (IOException damaged) {
            return new SavedConversation();
        }
    }

    /** Not writeUTF, which is modified UTF-8 and ends at 64 kB. */
    private static void text(DataOutputStream out, String text) throws IOException {
        byte[] bytes = text.getBytes("UTF-8");
        out.writeInt(bytes.length);
        out.write(bytes);
    }

    private static String text(DataInputStream in) throws IOException {
        int size = in.readInt();
        if (size < 0 || size > in.available()) {
            throw new IOException("a text is cut off");
        }
        byte[] bytes = new byte[size];
        in.readFully(bytes);
        return new String(bytes, "UTF-8");
    }

    private static void texts(DataOutputStream out, List<String> texts) throws IOException {
        out.writeInt(texts.size());
        for (String text : texts) {
            text(out, text);
        }
    }

    private static List<String> texts(DataInputStream in) throws IOException {
        int count = in.readInt();
        if (count < 0 || count > MAX_TURNS) {
            throw new IOException("a list is cut off");
        }
        List<String> texts = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            texts.add(text(in));
        }
        return texts;
    }
}
